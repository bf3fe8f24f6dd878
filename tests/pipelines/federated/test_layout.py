"""A layout: parameters to one flat vector and back, whatever order they came in."""

from __future__ import annotations

import pickle

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelines.federated.layout import Layout

shapes = st.dictionaries(
    st.text("abc.01", min_size=1, max_size=4), st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1
)


def drawn(sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) + 1 for name, shape in sizes.items()}


@given(sizes=shapes)
def test_flattening_and_back_gives_every_parameter_in_its_shape(sizes: dict[str, tuple[int, ...]]) -> None:
    parameters = drawn(sizes)
    layout = Layout.of(parameters)
    flat = layout.flatten(parameters)
    assert flat.shape == (layout.size,)
    assert layout.size == sum(layout.sizes) == sum(tensor.numel() for tensor in parameters.values())
    back = layout.unflatten(flat.clone())
    flat.zero_()
    assert all(tensor.all() for tensor in parameters.values()), "flattening copies"
    assert back.keys() == parameters.keys()
    for name, tensor in parameters.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


@given(sizes=shapes, data=st.data())
def test_the_order_in_which_parameters_come_does_not_matter(
    sizes: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    parameters = drawn(sizes)
    shuffled = {name: parameters[name] for name in data.draw(st.permutations(list(parameters)))}
    assert Layout.of(shuffled) == Layout.of(parameters)
    assert torch.equal(Layout.of(parameters).flatten(shuffled), Layout.of(parameters).flatten(parameters))


@given(sizes=shapes, sites=st.integers(0, 3))
def test_a_stack_unflattens_site_by_site_into_views(sizes: dict[str, tuple[int, ...]], sites: int) -> None:
    layout = Layout.of(drawn(sizes))
    stack = torch.randn(sites, layout.size)
    views = layout.unflatten(stack)
    for site in range(sites):
        for name, tensor in layout.unflatten(stack[site]).items():
            assert torch.equal(views[name][site], tensor)
    for view in views.values():
        view.fill_(3.0)
    assert (stack == 3.0).all()


def test_a_model_has_the_layout_of_its_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    layout = Layout.of_model(model)
    assert layout.names == ("0.bias", "0.weight", "1.weight")
    assert layout.shapes == ((2,), (2, 3), (1, 2))
    assert not layout.flatten(dict(model.named_parameters())).requires_grad
    assert pickle.loads(pickle.dumps(layout)) == layout  # noqa: S301 (our own bytes)
