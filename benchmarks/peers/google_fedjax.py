"""FedJAX: federated averaging over for_each_client, with its jit backend or with one that takes blocks.

    jit    as shipped: one compiled step, dispatched for every batch
    scan   on its extension point: a client's whole epoch compiled as one scan
    vmap   on its extension point: the same, over a block of clients at once

Its pmap backend gives arrays of another shape on this jax, the last that its release runs on. Settings in its favour:
batches are not shuffled, XLA may use all cores, and the best variant counts. Two copies with one thread each, whose
rates are added, stand for a form with processes, which it does not have.
"""

from __future__ import annotations

import os

import protocol

VARIANTS = ("jit", "scan", "vmap")
workload, arguments, answers = protocol.start(VARIANTS)
os.environ["JAX_PLATFORMS"] = "cpu"
if arguments.threads == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

# After the flags, which JAX reads once.
import fedjax  # noqa: E402
import haiku as hk  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from fedjax.core.for_each_client import ForEachClientBackend  # noqa: E402
from workloads import BATCH, data, flat, initial  # noqa: E402

BLOCK = 125  # clients that the vmap variant takes at once, at most


class BlockBackend(ForEachClientBackend):
    """Clients in blocks; each block is one call of a compiled function, and so is a client's whole epoch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, client_init, client_step, client_final):
        def one_client(shared, batches, client_input):
            state, results = jax.lax.scan(client_step, client_init(shared, client_input), batches)
            return client_final(shared, state), results

        block = jax.jit(jax.vmap(one_client, in_axes=(None, 0, 0)) if self.size > 1 else one_client)

        def run(shared, clients):
            for at in range(0, len(clients), self.size):
                names, batches, inputs = zip(*clients[at : at + self.size], strict=True)
                stacked = [stack(list(client_batches)) for client_batches in batches]
                if self.size == 1:
                    yield names[0], block(shared, stacked[0], inputs[0])[0], []
                    continue
                outputs, _ = block(shared, stack(stacked), np.stack(inputs))
                outputs = jax.tree_util.tree_map(np.asarray, outputs)
                for index, name in enumerate(names):
                    yield name, jax.tree_util.tree_map(lambda value: value[index], outputs), []  # noqa: B023

        return run


def stack(trees: list):
    return jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), *trees)


def block_size(cohort: int) -> int:
    return max(size for size in range(1, BLOCK + 1) if cohort % size == 0)


def conv(layer: str, channels: int, kernel: int, **how) -> hk.Conv2D:
    return hk.Conv2D(channels, kernel, name=layer_name(layer), **how)


def linear(layer: str, size: int) -> hk.Linear:
    return hk.Linear(size, name=layer_name(layer))


def pool(x: jnp.ndarray) -> jnp.ndarray:
    return hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def forward(batch) -> jnp.ndarray:
    """The workload's model; images are [batch, height, width, channels] here."""
    x, relu, flatten = batch["x"], jax.nn.relu, hk.Flatten()
    match workload.name:
        case "mlp2nn":
            return hk.Sequential([linear("0", 200), relu, linear("2", 200), relu, linear("4", 10)])(x)
        case "cnn":
            images = [conv("0", 32, 5), relu, pool, conv("3", 64, 5), relu, pool]
            return hk.Sequential([*images, flatten, linear("7", 512), relu, linear("9", 10)])(x)
        case "cifar":
            images = [conv("0", 32, 3, padding="VALID"), relu, conv("2", 64, 3, padding="VALID"), relu, pool]
            return hk.Sequential([*images, flatten, linear("6", 128), relu, linear("8", 10)])(x)
        case "any_module":
            x = conv("stem", 32, 4, stride=4, padding="VALID")(x)
            for block in ("first", "second"):
                inner = hk.GroupNorm(4, name=layer_name(f"{block}.norm"))(x)
                inner = jax.nn.gelu(conv(f"{block}.widen", 32, 3)(inner), approximate=False)
                x = x + conv(f"{block}.mix", 32, 3)(inner)
            norm = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=layer_name("norm"))
            return linear("head", 10)(norm(x.mean(axis=(1, 2))))
        case _:
            return linear("", 1)(x)[:, 0]


def loss(batch, logits: jnp.ndarray) -> jnp.ndarray:
    """Of every example."""
    if workload.classes == 1:
        return jax.nn.softplus(logits) - logits * batch["y"]
    return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)


# The matrix that reads a flattened image: torch flattens [channels, height, width], haiku [height, width, channels].
READS_IMAGE = {"cnn": "7.weight", "cifar": "6.weight"}.get(workload.name)
CHANNELS = 64


def place(name: str) -> tuple[str, str]:
    """Haiku's layer and weight for a parameter of torch's."""
    layer, _, kind = name.rpartition(".")
    ours = {"weight": "scale", "bias": "offset"} if "norm" in layer else {"weight": "w", "bias": "b"}
    return layer_name(layer), ours[kind]


def layer_name(layer: str) -> str:
    return "layer_" + layer.replace(".", "_")


def to_haiku(values: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, value in values.items():
        if name == READS_IMAGE:
            side = round((value.shape[1] / CHANNELS) ** 0.5)
            value = value.reshape(-1, CHANNELS, side, side).transpose(0, 2, 3, 1).reshape(value.shape)
        layer, weight = place(name)
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        params.setdefault(layer, {})[weight] = np.ascontiguousarray(value.transpose(order))
    return params


def from_haiku(params) -> dict[str, np.ndarray]:
    values = {}
    for parameter in workload.parameters:
        layer, weight = place(parameter.name)
        value = np.asarray(params[layer][weight])
        value = value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim])
        if parameter.name == READS_IMAGE:
            side = round((value.shape[1] / CHANNELS) ** 0.5)
            value = value.reshape(-1, side, side, CHANNELS).transpose(0, 3, 1, 2).reshape(value.shape)
        values[parameter.name] = value
    return values


def main() -> None:
    x, y = data(workload)
    if x.ndim == 5:
        x = np.ascontiguousarray(x.transpose(0, 1, 3, 4, 2))
    clients = fedjax.InMemoryFederatedData(
        {client: {"x": x[client], "y": y[client]} for client in range(workload.population)}
    )
    model = fedjax.create_model_from_haiku(hk.transform(forward), {"x": x[0, :1], "y": y[0, :1]}, loss)
    size = {"vmap": block_size(workload.cohort // arguments.share), "scan": 1}.get(arguments.variant)
    fedjax.set_for_each_client_backend(arguments.variant if size is None else BlockBackend(size))
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(workload.learning_rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, skip_shuffle=True),
    )
    first = to_haiku(initial(workload))
    wanted = jax.tree_util.tree_map(jnp.shape, model.init(jax.random.PRNGKey(0)))
    assert wanted == jax.tree_util.tree_map(np.shape, first), wanted
    part = workload.cohort // arguments.share
    sampler = fedjax.client_samplers.UniformGetClientSampler(clients, part, seed=0)
    state = algorithm.init(first)

    def aggregate(examples: int) -> np.ndarray:
        keys = jax.random.split(jax.random.PRNGKey(0), workload.cohort)
        found = zip(clients.get_clients(range(workload.cohort)), keys, strict=True)
        cohort = [(name, rows[:examples], key) for (name, rows), key in found]
        after, _ = algorithm.apply(algorithm.init(first), cohort)
        return flat(from_haiku(after.params)) - flat(initial(workload))

    def one_round() -> int:
        nonlocal state
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        return part

    def run(seconds: float) -> tuple[int, float]:
        nonlocal state
        state = algorithm.init(first)
        return protocol.timed(one_round, seconds)

    ready = {
        "threads": arguments.threads,
        "processes": 1,
        "versions": {"fedjax": "0.0.17", "jax": jax.__version__, "jaxlib": jax.lib.__version__},
        "settings": f"federated_averaging, {arguments.variant} backend; batches not shuffled",
    }
    protocol.serve(workload, answers, ready, aggregate, run)


if __name__ == "__main__":
    main()
