"""Heat maps lie where the evidence is; SHAP values of a logistic model are what the formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from models.digits import build_model as digits_model
from models.errors import BadInput
from models.explain import grad_cam, last_convolution, overlay, shap_values
from models.images import Images, to_tensor
from models.small_cnn import small_cnn

PATCH = 8


def planted(count: int, seed: int) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """uint8 [n, 28, 28, 3] of noise; class 1 has a bright patch somewhere. Also the class and the patch's corner."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, size=(count, 28, 28, 3)).astype(np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    corners = rng.integers(0, 28 - PATCH, size=(count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label:
            image[top : top + PATCH, left : left + PATCH] = 230
    return images, labels, corners


@pytest.fixture(scope="module")
def finder() -> nn.Module:
    """A network that has learned to see the patch."""
    torch.manual_seed(0)
    images, labels, _ = planted(256, 1)
    model, x, y = small_cnn(3, 2, 0.3, 0.2), to_tensor(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(30):
        for part in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model


def test_the_heat_lies_on_the_patch_that_the_network_found(finder: nn.Module) -> None:
    images, labels, corners = planted(64, 2)
    with torch.no_grad():
        right = (finder(to_tensor(images)).argmax(1).numpy() == labels) & (labels == 1)
    assert right.sum() > 25, "the network has learned nothing to explain"
    heat = grad_cam(finder, images[right], labels[right])
    inside = []
    for warmth, (top, left) in zip(heat, corners[right], strict=True):
        # One cell of the last layer, 4 pixels, around the patch.
        near = warmth[max(0, top - 4) : top + PATCH + 4, max(0, left - 4) : left + PATCH + 4]
        inside.append(near.sum() / warmth.sum())
    share_of_picture = (PATCH + 8) ** 2 / 28**2
    assert np.mean(inside) > 2 * share_of_picture
    assert np.median(inside) > 0.75


def test_heat_is_one_number_for_each_pixel_between_0_and_1(finder: nn.Module) -> None:
    images, labels, _ = planted(6, 3)
    heat = grad_cam(finder, images, labels)
    assert heat.shape == (6, 28, 28)
    assert (heat >= 0).all()
    assert (heat <= 1).all()
    assert grad_cam(finder, images[:0], labels[:0]).shape == (0, 28, 28)


@pytest.mark.parametrize("shape", [(28, 28, 3), (8, 8, 1)])
def test_an_overlay_is_grey_where_it_is_cold_and_coloured_where_it_is_warm(shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 128, dtype=np.uint8)
    heat = np.zeros(shape[:2], dtype=np.float32)
    heat[: shape[0] // 2] = 1.0
    shown = overlay(image, heat, 56).astype(int)
    assert shown.shape == (56, 56, 3)
    saturation = shown.max(axis=2) - shown.min(axis=2)
    assert (saturation[40:] == 0).all()
    assert (saturation[:16] > 20).all()


def test_the_layer_that_is_read_is_the_last_convolution_with_its_activation() -> None:
    model = digits_model()
    assert last_convolution(model) is list(model.children())[3]
    assert isinstance(list(model.children())[3], nn.ReLU)
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU())
    assert last_convolution(layers) is layers[0]


def test_a_model_without_a_convolution_is_refused_in_a_sentence() -> None:
    with pytest.raises(BadInput, match="has no convolution"):
        last_convolution(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


@hypothesis_settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 400), st.integers(0, 2**31))
def test_shap_values_of_a_logistic_model_are_weight_times_distance_from_the_mean(
    features: int, background: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = nn.Linear(features, 1)
    usual, x = rng.normal(2.0, 3.0, size=(background, features)), rng.normal(size=(5, features))
    weight = model.weight.detach().double().numpy()[0]
    assert np.abs(shap_values(model, usual, x) - weight * (x - usual.mean(axis=0))).max() < 1e-6


def test_shap_refuses_what_it_would_answer_wrongly() -> None:
    rows = np.zeros((3, 4))
    with pytest.raises(BadInput, match="linear layer with one output"):
        shap_values(nn.Linear(4, 2), rows, rows)
    with pytest.raises(BadInput, match="rows of one kind"):
        shap_values(nn.Linear(4, 1), rows[:0], rows)
