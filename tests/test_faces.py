"""The synthetic faces, their renderer, and a decoder that learns them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from i2ilib import models, quant
from i2ilib.datasets import _head, _mesh, faces
from i2ilib.datasets.faces import Expression
from i2ilib.errors import I2IError, IntegrityError
from i2ilib.models import Avatar, CodecAvatarConfig
from i2ilib.train import fit
from i2ilib.train.avatar import (
    PRESETS,
    AvatarConfig,
    AvatarTask,
    FaceDataset,
    avatar_config,
    errors,
    main,
    train_avatar,
)

FRONT = faces.direction(0)[None]


def face(size: int = 64, view: torch.Tensor = FRONT, **fields) -> Avatar:
    return faces.face(faces.encode(Expression(**fields)), view, size=size)


def texel(x: float, y: float, size: int) -> tuple[slice, slice]:
    """A few texels around a point of the face at rest."""
    plane = _head.plane(size)
    at = ((plane.x - x) ** 2 + (plane.y - y) ** 2 + (plane.z < 0) * 9).argmin()
    row, column = divmod(int(at), size)
    return slice(row - 1, row + 2), slice(column - 1, column + 2)


def test_a_face_is_a_function_of_its_arguments():
    latents, views = faces.draw(3, seed=5)
    again = faces.draw(3, seed=5)
    assert torch.equal(latents, again[0]) and torch.equal(views, again[1])
    assert not torch.equal(latents, faces.draw(3, seed=6)[0])
    a, b = faces.face(latents, views, size=64), faces.face(latents, views, size=64)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)
    alone = faces.face(latents[1:2], views[1:2], size=64)
    for x, y in zip(a, alone, strict=True):
        torch.testing.assert_close(x[1:2], y)
    assert [tuple(x.shape) for x in a] == [(3, 3, 16, 16), (3, 3, 64, 64), (3, 2, 16, 16)]
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in a)
    assert a.texture.min() >= 0 and a.texture.max() <= 1


def test_sizes_show_the_same_face():
    fine, coarse = face(256, smile=1.0), face(64, smile=1.0)
    assert (torch.nn.functional.avg_pool2d(fine.geometry, 4) - coarse.geometry).abs().max() < 0.08
    assert (torch.nn.functional.avg_pool2d(fine.texture, 4) - coarse.texture).abs().mean() < 0.02


def test_codes_can_be_read_back():
    values = torch.rand(5, len(faces.NAMES)) * 2 - 1
    torch.testing.assert_close(faces.encode(values) @ faces._READ, values)
    assert faces.encode([Expression(), Expression(jaw=1)]).shape == (2, 256)
    assert not faces.encode(Expression()).any()


def test_views_are_unit_vectors_within_the_range():
    _, views = faces.draw(200, seed=0)
    torch.testing.assert_close(views.norm(dim=1), torch.ones(200))
    assert views[:, 1].abs().max() <= math.sin(math.radians(20)) and views[:, 2].min() > 0.7
    torch.testing.assert_close(faces.direction(90), torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(faces.direction(0, 90), torch.tensor([0, 1.0, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", faces.NAMES)
def test_every_parameter_shows(name):
    rest, changed = face(96), face(96, **{name: 1.0})
    moved = max((a - b).abs().max() for a, b in zip(rest[:2], changed[:2], strict=True))
    assert moved > 0.04


def test_a_smile_lifts_the_corners_and_a_jaw_drops_the_chin():
    corner, chin = texel(0.2, -0.52, 64), texel(0, -0.86, 64)

    def height(where, **fields):
        return face(256, **fields).geometry[0, 1][where].mean()

    assert height(corner, smile=1.0) > height(corner) + 0.03
    assert height(chin, jaw=1.0) < height(chin) - 0.08
    assert height(chin, jaw=-1.0) == pytest.approx(float(height(chin)), abs=0.01)


def test_eyes_look_where_gaze_says_and_shut():
    plane = _head.plane(256)

    def iris(**fields) -> tuple[list[int], list[float]]:
        """Of both eyes: bluish texels, and where they are in the middle."""
        image = face(256, **fields).texture[0]
        blue = (image[2] > image[0]) & ((plane.y - 0.06).abs() < 0.08) & (plane.z > 0)
        eyes = [blue & ((plane.x - 0.305 * side).abs() < 0.15) for side in (-1, 1)]
        return [int(eye.sum()) for eye in eyes], [float(plane.x[eye].mean()) if eye.any() else 0.0 for eye in eyes]

    rest, right, left = iris(), iris(gaze_x=1.0), iris(gaze_x=-1.0)
    for eye in (0, 1):
        assert min(n[0][eye] for n in (rest, right, left)) > 10
        assert right[1][eye] > rest[1][eye] + 0.03 > left[1][eye] + 0.06
    assert iris(lid_left=-1.0)[0] == [0, rest[0][1]] and iris(lid_right=-1.0)[0] == [rest[0][0], 0]


def test_only_texture_and_warp_depend_on_the_view():
    a, b = face(), face(view=faces.direction(35)[None])
    assert torch.equal(a.geometry, b.geometry)
    assert (a.texture - b.texture).abs().max() > 0.02
    assert b.warp.abs().max() > a.warp.abs().mean() > 0 and not torch.allclose(a.warp, b.warp)
    left = face(view=faces.direction(-35)[None])
    eye = texel(0.3, 0.075, 16)
    assert b.warp[0, 0][eye].mean() < 0 < left.warp[0, 0][eye].mean()  # an iris follows the viewer's side


def test_normals_point_outwards():
    geometry = face(256).geometry
    normal = _head.normals(geometry)[0]
    torch.testing.assert_close(normal.norm(dim=0), torch.ones(64, 64))
    row, column = 34, 32  # the middle of the face
    assert normal[2, row, column] > 0.3
    assert normal[0, row, 18] < 0 < normal[0, row, 45] and normal[1, 6].mean() > 0


# --- the renderer ----------------------------------------------------------------------------------------


def test_rasteriser_covers_a_plane_once_with_its_own_coordinates():
    rows, columns = np.mgrid[2:14:5j, 3:11:4j]
    pixel, corner, weight = _mesh.rasterise(rows, columns, np.zeros_like(rows), 16)
    inside = np.zeros((16, 16), bool)
    inside[2:14, 3:11] = True
    assert np.array_equal(np.sort(pixel.numpy()), np.flatnonzero(inside))
    at = (torch.from_numpy(np.stack([rows.ravel(), columns.ravel()])).float()[:, corner] * weight).sum(1)
    wanted = torch.stack([pixel // 16 + 0.5, pixel % 16 + 0.5])
    torch.testing.assert_close(at, wanted, atol=1e-4, rtol=0)


def test_the_nearest_surface_wins_and_backs_are_not_drawn():
    rows, columns = np.mgrid[0:8:2j, 0:8:2j]
    far, near = np.zeros((2, 2)), np.ones((2, 2))
    both = [np.concatenate([a, b], 1) for a, b in ((rows, rows), (columns, columns), (near, far))]
    _, corner, _ = _mesh.rasterise(*both, 8)
    assert set(corner.flatten().tolist()) <= {0, 1, 4, 5} | {2, 3, 6, 7} and (corner % 4 < 2).all()
    assert len(_mesh.rasterise(rows, columns[:, ::-1], far, 8)[0]) == 0


def test_a_rendered_head_stands_before_the_backdrop():
    size = 96
    images = faces.render(face(128), FRONT, size=size)
    assert images.shape == (1, 3, size, size) and images.min() >= 0 and images.max() <= 1
    backdrop = torch.nn.functional.avg_pool2d(_mesh.backdrop(2 * size).reshape(1, 3, 2 * size, 2 * size), 2)
    head = ((images - backdrop).abs().sum(1)[0] > 0.05).float()
    assert 0.2 < head.mean() < 0.6 and head[size // 2, size // 2] == 1 and not head[:, :4].any()
    skin = images[0, :, int(0.6 * size), size // 2 - 6]
    assert skin[0] > skin[1] > skin[2]


def test_turning_the_viewer_moves_the_nose():
    tip = texel(0, -0.24, 32)
    point = face(128).geometry[0][(slice(None), *tip)].mean((1, 2))
    assert point[2] > face(128).geometry[0, 2].mean() + 0.5  # it sticks out
    views = torch.stack([faces.direction(-30), faces.direction(30)])
    latent = faces.encode([Expression()] * 2)
    left, right = faces.render(faces.face(latent, views, size=128), views, size=64)
    assert (left - right).abs().mean() > 0.02


@pytest.mark.parametrize(
    ("latent", "view", "size", "said"),
    [
        ((1, 255), (1, 3), 64, r"latent \(N, 256\)"),
        ((2, 256), (1, 3), 64, r"view \(N, 3\)"),
        ((256,), (1, 3), 64, r"latent \(N, 256\)"),
        ((1, 256), (1, 3), 66, "multiple of 4"),
        ((1, 256), (1, 3), 8, "from 16"),
    ],
)
def test_faces_that_cannot_be_are_refused(latent, view, size, said):
    with pytest.raises(I2IError, match=said):
        faces.face(torch.zeros(latent), torch.ones(view), size=size)


def test_a_render_needs_a_view_a_face():
    with pytest.raises(I2IError, match=r"views \(1, 3\)"):
        faces.render(face(), torch.ones(2, 3))


# --- training --------------------------------------------------------------------------------------------

TINY = AvatarConfig(size=32, width=0.125, faces=8, epochs=2, batch=4)


def test_data_are_the_faces():
    data = FaceDataset(3, size=32, seed=1)
    latents, views = faces.draw(3, seed=1)
    latent, view, *parts = data.cut(2, epoch=9)
    true = faces.face(latents, views, size=32)
    assert len(data) == 3 and torch.equal(latent, latents[2]) and torch.equal(view, views[2])
    assert torch.equal(parts[0], true.geometry[2]) and torch.equal(parts[2], true.warp[2])
    assert (parts[1] - true.texture[2]).abs().max() <= 0.5 / 255 + 1e-6


def test_errors_are_mean_squares():
    zero, two = Avatar(*(torch.zeros(1, 3, 4, 4),) * 3), Avatar(*(torch.full((1, 3, 4, 4), 2.0),) * 3)
    assert {name: float(value) for name, value in errors(zero, two).items()} == dict.fromkeys(Avatar._fields, 4.0)
    weight = torch.zeros(4, 4)
    weight[0] = 3.0
    weighted = {name: float(value) for name, value in errors(zero, two, weight=weight).items()}
    assert weighted == {"geometry": 4.0, "texture": 3.0, "warp": 4.0}


def test_attention_is_on_the_face():
    weight = faces.attention(64)
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-5) and weight.min() > 0
    eye, mouth, nape = (weight[texel(x, y, 64)].mean() for x, y in ((0.305, 0.07), (0, -0.53), (0, 0.8)))
    assert eye > 3 * nape and mouth > 2 * nape


def test_training_learns_the_faces_and_keeps_the_decoder(tmp_path):
    out = tmp_path / "small.safetensors"
    config = dataclasses.replace(TINY, faces=16, epochs=12, learning_rate=5e-3, tied=CodecAvatarConfig().tied)
    history = train_avatar(out, config, progress=False)
    assert len(history) == 48 and set(history.epochs[-1]) == {"geometry", "texture", "warp", "psnr"}
    for name in ("geometry", "texture"):  # the warp field is small, and settles late
        assert history.epochs[-1][name] < 0.3 * history.steps[name][0]
    decoder, meta = models.load(out)
    assert meta["task"] == "avatar" and meta["trained"]["validation"] == history.epochs[-1]
    task = AvatarTask(config, progress=False)
    task.modules["decoder"].load_state_dict(decoder.state_dict())
    assert task.finish_epoch(12) == history.epochs[-1]
    assert not decoder.branch(1)(torch.randn(2, 4, 8, 8))[:, 3].any()  # training leaves the padding channel alone


def test_untied_outputs_start_from_the_mean_face():
    task = AvatarTask(TINY, progress=False)
    decoder, data = task.modules["decoder"], FaceDataset(TINY.faces, size=TINY.size, seed=TINY.seed)
    with torch.no_grad():
        for part in ("geometry.conv6", "texture.conv8", "warp.conv6"):
            decoder.get_submodule(f"{part}.conv.conv").weight.zero_()
        made = decoder(data.latents, data.views)
    torch.testing.assert_close(made.geometry[0], data.geometry.mean(0))
    torch.testing.assert_close(made.texture[0], data.texture.double().mean(0).float() / 255)
    torch.testing.assert_close(made.warp[0], data.warp.mean(0))


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole = train_avatar(tmp_path / "a.safetensors", TINY, progress=False)

    class Cut(AvatarTask):
        def step(self, index, batch):
            if index == 3:
                raise RuntimeError("power cut")
            return super().step(index, batch)

    with pytest.raises(RuntimeError):
        fit(Cut(TINY, progress=False), tmp_path / "b", progress=False, save_every=0)
    resumed = train_avatar(tmp_path / "b.safetensors", TINY, progress=False)
    assert resumed.steps["texture"] == whole.steps["texture"] and resumed.epochs == whole.epochs
    with pytest.raises(IntegrityError, match="seed"):
        train_avatar(tmp_path / "b.safetensors", dataclasses.replace(TINY, seed=1), progress=False)


def test_presets_grow_and_refuse():
    sizes = [avatar_config(name).faces * avatar_config(name).epochs for name in ("smoke", "quick", "full")]
    assert sizes == sorted(sizes) and avatar_config("quick", seed=4).seed == 4
    with pytest.raises(I2IError, match="smoke or quick or full"):
        avatar_config("huge")
    with pytest.raises(I2IError, match=r"faces.*at least 1"):
        AvatarConfig(faces=0)
    with pytest.raises(I2IError, match="size"):
        AvatarConfig(size=100)


def test_command_line_keeps_half_precision(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.asdict(TINY) | {"epochs": 1})
    main([str(tmp_path / "a.safetensors"), "--preset", "smoke", "--half"])
    decoder, _ = models.load(tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}


def test_weights_have_one_suffix(tmp_path):
    with pytest.raises(I2IError, match=r"\.safetensors"):
        train_avatar(tmp_path / "a.pt", TINY)


# --- the decoder that comes with the project -------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained():
    latents, views = faces.draw(8, seed=99)
    decoder, meta = models.pretrained("avatar_faces")
    true = faces.face(latents, views, size=decoder.config.size)
    return decoder, meta, latents, views, true


@torch.no_grad()
def rms(made: Avatar, true: Avatar) -> dict[str, float]:
    return {name: float(value.sqrt()) for name, value in errors(made, true).items()}


def test_pretrained_decodes_faces_that_it_never_saw(pretrained):
    decoder, meta, latents, views, true = pretrained
    assert meta["task"] == "avatar" and meta["trained"]["seed"] != 99
    found = rms(decoder(latents, views), true)
    mean = faces.face(*faces.draw(16, seed=7), size=decoder.config.size)
    dull = rms(Avatar(*(part.mean(0, keepdim=True).expand_as(t) for part, t in zip(mean, true, strict=True))), true)
    for name in Avatar._fields:  # the README says 0.10, 4.8 and 0.015 in its units
        assert found[name] < 0.5 * dull[name]
    assert 50 * found["geometry"] < 0.15 and 255 * found["texture"] < 6 and found["warp"] < 0.02


def test_pretrained_survives_integers(pretrained):
    decoder, _, latents, views, true = pretrained
    made = []
    for number in (1, 2, 3):
        calibration = decoder.codes(*faces.draw(16, seed=5))[min(number, 2) - 1]
        inputs = decoder.codes(latents, views)[min(number, 2) - 1]
        quantised = quant.quantise(decoder.branch(number), [calibration])
        made.append(quantised.integer(inputs))
        assert torch.equal(quantised.fake(inputs), made[-1])
    found = rms(Avatar(made[0][:, :3], *made[1:]), true)
    assert 50 * found["geometry"] < 0.4 and 255 * found["texture"] < 7 and found["warp"] < 0.02
