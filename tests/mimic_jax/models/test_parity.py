"""The models against the published PyTorch models' own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.interop.names import CROCO, MAE, MIMIC, from_published
from mimic_jax.models import completion
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.patches import patchify
from mimic_jax.nn.positions import sincos_2d

FIXTURES = {
    "croco_cosine": ("croco", CROCO, {"positions": "cosine"}),
    "croco_rope100": ("croco", CROCO, {"positions": "rope100"}),
    "mimic_croco_cls": ("croco", MIMIC, {"positions": "cosine", "class_token": True}),
    "mae": ("mae", MAE, {"positions": "cosine", "class_token": True}),
}


def relative(found, expected) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def tensors_of(fixture, group: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(group): fixture[key] for key in fixture if key.startswith(group)}


@pytest.fixture(params=FIXTURES)
def published(request, parity):
    """The fixture, the model's graph and parameters, its views and the indices of visible patches."""
    kind, names, others = FIXTURES[request.param]
    fixture = np.load(parity / f"{request.param}.npz")
    given = tensors_of(fixture, "in/")
    fields = ("embed_dim", "depth", "num_heads")
    sizes = Sizes(
        *(int(given[f"{part}_{field}"]) for part in ("enc", "dec") for field in fields),
        patch_size=int(given["patch_size"]),
        mask_ratio=float(given["mask_ratio"]),
        **others,
    )
    graph, _ = nnx.split(abstract(kind, sizes))
    parameters = jax.tree.map(jnp.asarray, from_published(abstract(kind, sizes), tensors_of(fixture, "param/"), names))
    views = [jnp.asarray(given[name].transpose(0, 2, 3, 1)) for name in ("img1", "img2")]
    visible = jnp.asarray(np.stack([np.flatnonzero(mask == 0) for mask in given["mask"]]))
    model = nnx.merge(graph, parameters)
    return fixture, names, model, views[: model.views], visible


def test_outputs_match_the_published_model(published):
    fixture, _, model, views, visible = published
    found = {"prediction": model(*views, visible)}
    if "out/visible_features" in fixture:
        features1, features2 = model.encode(views[0], visible), model.encode(views[1])
        found |= {
            "visible_features": features1,
            "view2_features": features2,
            "decoder_features": model.decode(features1, features2, (4, 4), visible),
            "target": patchify(views[0], 16),
        }
    for name, value in found.items():
        np.testing.assert_allclose(value, fixture[f"out/{name}"], atol=1e-4, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(completion.mask(views[0], visible, model.sizes), fixture["in/mask"])
    # As many are visible as the published model left visible at this ratio: the two round differently.
    assert model.sizes.visible(16) == visible.shape[1]


def test_losses_match_the_published_model(published):
    fixture, _, model, views, visible = published
    assert relative(completion.loss(model, views, visible).mean(), fixture["out/loss"]) < 1e-5
    if "out/loss_unnormalized" in fixture:
        model.sizes = Sizes(**{**vars(model.sizes), "norm_pix_loss": False})
        assert relative(completion.loss(model, views, visible).mean(), fixture["out/loss_unnormalized"]) < 1e-5


def test_every_gradient_matches_the_published_model(published):
    fixture, names, model, views, visible = published
    graph, parameters = nnx.split(model)
    loss = lambda parameters: completion.loss(nnx.merge(graph, parameters), views, visible).mean()  # noqa: E731
    found = dict(jax.tree.leaves_with_path(nnx.to_pure_dict(jax.grad(loss)(parameters))))
    expected = dict(jax.tree.leaves_with_path(from_published(model, tensors_of(fixture, "grad/"), names)))
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        scale = np.linalg.norm(gradient)
        # The key biases' gradient is zero but for rounding: softmax does not feel a shift of all scores.
        error = np.linalg.norm(found[path] - gradient)
        assert error < 1e-3 * scale + 1e-7, (path, error, scale)


def test_added_positions_are_the_published_tables_bit_for_bit(published):
    fixture, names, _, _, _ = published
    for name in (names.encoder_positions, names.decoder_positions):
        if f"param/{name}" in fixture:
            table = fixture[f"param/{name}"]
            np.testing.assert_array_equal(table.reshape(-1, table.shape[-1])[-16:], sincos_2d(table.shape[-1], 4, 4))
