"""What step n draws: every row in turn, aligned, and from the seed and n alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from leuda_train.augment import random_affine
from leuda_train.batches import draw_labelled, draw_rows, make_batch, step_generator, take_rows
from leuda_train.config import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.hardware import Hardware
from leuda_train.slices import UNLABELLED


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 7), (3, 8), (1, 2)])
def test_every_row_is_drawn_once_before_any_is_drawn_twice(size, count):
    rows = np.arange(size) * 10
    drawn = np.concatenate([draw_rows(rows, count, step, 0, "test") for step in range(size)])
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == rows.tolist()


def test_each_turn_has_another_order():
    rows = np.arange(50)
    first, second = (draw_rows(rows, 50, step, 0, "test").tolist() for step in (0, 1))
    assert first != second


def test_a_draw_depends_on_seed_purpose_and_step():
    rows = np.arange(50)
    drawn = draw_rows(rows, 10, 3, 0, "a").tolist()
    assert drawn == draw_rows(rows, 10, 3, 0, "a").tolist()
    assert drawn != draw_rows(rows, 10, 3, 1, "a").tolist()
    assert drawn != draw_rows(rows, 10, 3, 0, "b").tolist()
    assert drawn != draw_rows(rows, 10, 4, 0, "a").tolist()
    seeds = {step_generator(*key).initial_seed() for key in ((0, "a", 1), (0, "a", 2), (1, "a", 1))}
    assert len(seeds) == 3


def everything(batch) -> list[torch.Tensor]:
    return [*batch.labelled, batch.labels, *batch.unlabelled.values()]


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    sets, config = tiny.aligned_sets(), tiny.config()
    straight = [make_batch(sets, config, tiny.CPU, step) for step in range(4)][3]
    torch.manual_seed(1234)
    alone = make_batch(tiny.aligned_sets(), config, tiny.CPU, 3)
    for a, b in zip(everything(straight), everything(alone), strict=True):
        assert torch.equal(a, b)
    other = make_batch(sets, tiny.config(seed=1), tiny.CPU, 3)
    assert not torch.equal(alone.unlabelled["target"], other.unlabelled["target"])


def test_families_are_aligned_before_and_after_the_warp():
    batch = make_batch(tiny.aligned_sets(), tiny.config(), tiny.CPU, 5)
    assert set(batch.unlabelled) == {*SOURCE_STREAMS, *TARGET_STREAMS}
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        first = batch.unlabelled[family[0]]
        for offset, stream in enumerate(family):
            torch.testing.assert_close(batch.unlabelled[stream], first + offset)
    source, cycled = batch.labelled
    torch.testing.assert_close(cycled, source + 2)
    assert not torch.equal(source, batch.unlabelled["source"])


def test_labels_follow_their_images_through_the_warp():
    sets = tiny.aligned_sets()
    images = dict(sets.images, source=sets.labels.astype(np.float32))
    sets = replace(sets, images=images)
    batch = make_batch(sets, tiny.config(), tiny.CPU, 0)
    shown = batch.labelled[0][:, 0]
    sure = (shown - shown.round()).abs() < 0.01
    # interpolation between 0 and 2 passes 1 by chance, so agreement is not quite everywhere
    assert (shown[sure].round().long() == batch.labels[sure]).float().mean() > 0.95


def test_only_labelled_rows_are_supervised():
    sets = tiny.aligned_sets()
    sets.images["source"][4:] = 1e6
    for step in range(6):
        batch = make_batch(sets, tiny.config(), tiny.CPU, step)
        assert batch.labelled[0].max() < 1e3


def test_methods_without_unlabelled_terms_draw_no_unlabelled_images():
    objective = {**tiny.NO_TERMS, "supervised_on": ["source"]}
    config = tiny.config(objective=objective, test={"network": "student", "feed": "target"})
    sets = tiny.aligned_sets()
    sets = replace(sets, images={"source": sets.images["source"]})
    batch = make_batch(sets, config, tiny.CPU, 0)
    assert batch.unlabelled == {}
    assert len(batch.labelled) == 1
    assert batch.labels.shape == (2, 16, 16)


def test_each_step_warps_anew():
    sets = tiny.aligned_sets(count=1)  # the same row every time
    sets = replace(sets, labelled_rows=np.arange(1))
    first, second = (make_batch(sets, tiny.config(), tiny.CPU, step) for step in (0, 1))
    assert not torch.equal(first.labelled[0], second.labelled[0])
    assert not torch.equal(first.unlabelled["target"], second.unlabelled["target"])


def test_images_are_channels_last():
    batch = make_batch(tiny.aligned_sets(), tiny.config(), tiny.CPU, 0)
    for image in (*batch.labelled, *batch.unlabelled.values()):
        assert image.shape == (2, 1, 16, 16)
        assert image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_on_a_gpu_resident_and_pinned_sets_give_the_batch_of_the_cpu(monkeypatch, share):
    monkeypatch.setattr("leuda_train.batches.RESIDENT_SHARE", share)
    gpu = Hardware(torch.device("cuda"), "fp32")
    sets = tiny.aligned_sets().on_device(gpu)
    assert all(isinstance(images, torch.Tensor) == (share > 0) for images in sets.images.values())
    found = make_batch(sets, tiny.config(), gpu, 3)
    expected = make_batch(tiny.aligned_sets(), tiny.config(), tiny.CPU, 3)
    for a, b in zip(everything(found), everything(expected), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-4)


def test_rows_of_a_resident_set_are_those_of_the_mapped_one():
    images = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    rows = np.array([4, 0, 4])
    mapped = take_rows(images, rows, tiny.CPU)
    assert torch.equal(mapped, take_rows(torch.from_numpy(images), rows, tiny.CPU))
    assert mapped.tolist() == images[rows].tolist()


def self_training(**objective: object) -> tiny.TrainConfig:
    terms = {**tiny.NO_TERMS, "supervised_on": ["source"], "lambda_pseudo": 1.0, **objective}
    return tiny.config(objective=terms, test={"network": "student", "feed": "target"})


def test_pasted_labels_are_those_of_the_pasted_pixels():
    sets = tiny.aligned_sets()
    images = dict(sets.images, source=sets.labels + np.float32(100.0))
    sets = replace(sets, images=images)
    batch = make_batch(sets, self_training(copy_paste=1.0), tiny.CPU, 0)
    pasted = batch.known != UNLABELLED
    assert pasted.any()
    assert not pasted.all()
    assert torch.equal(batch.strong[:, 0] > 50.0, pasted)
    shown = batch.strong[:, 0][pasted] - 100.0
    sure = (shown - shown.round()).abs() < 0.01
    assert (shown[sure].round().long() == batch.known[pasted][sure]).float().mean() > 0.95


def test_without_copy_paste_nothing_is_pasted():
    batch = make_batch(tiny.aligned_sets(), self_training(), tiny.CPU, 0)
    assert batch.known is None
    torch.testing.assert_close(batch.strong, batch.unlabelled["target"])


def test_before_its_epoch_self_training_draws_no_target():
    config = self_training(copy_paste=0.5, pseudo_from_epoch=2)
    assert make_batch(tiny.aligned_sets(), config.at(1), tiny.CPU, 3).strong is None
    assert make_batch(tiny.aligned_sets(), config.at(1), tiny.CPU, 3).unlabelled == {}
    assert make_batch(tiny.aligned_sets(), config.at(2), tiny.CPU, 6).strong is not None


def test_a_share_of_the_labelled_batch_shows_structures():
    sets = tiny.aligned_sets(count=8)
    sets.labels[3:] = 0
    sets = replace(sets, labelled_rows=np.arange(8))
    assert sets.structure_rows.tolist() == [0, 1, 2]
    assert sets.classes == 3
    config = tiny.config(schedule={"batch_labelled": 8, "structure_share": 0.75})
    drawn = np.stack([draw_labelled(sets, config, step) for step in range(12)])
    assert ((drawn < 3).sum(axis=1) == 6).all()
    assert set(drawn.ravel().tolist()) == set(range(8))


def test_class_shares_are_those_of_the_labelled_rows():
    sets = tiny.aligned_sets()
    labels = np.zeros_like(sets.labels)
    labels[:4, :8], labels[4:] = 2, 1
    shares = replace(sets, labels=labels).class_shares
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.5]))


def test_the_first_steps_show_the_same_field_of_view_in_fewer_pixels():
    schedule = {"coarse_window": (8, 8), "coarse_share": 0.5}
    config = tiny.config(schedule=schedule)
    early, late = (make_batch(tiny.aligned_sets(), config, tiny.CPU, step) for step in (5, 6))
    assert early.labelled[0].shape == early.unlabelled["target"].shape == (2, 1, 8, 8)
    assert early.labels.shape == (2, 8, 8)
    assert late.labelled[0].shape == (2, 1, 16, 16)
    full = make_batch(tiny.aligned_sets(), tiny.config(), tiny.CPU, 5)
    # each coarse pixel lies between four fine ones
    fine = torch.nn.functional.avg_pool2d(full.labelled[0], 2)
    assert torch.corrcoef(torch.stack([fine.flatten(), early.labelled[0].flatten()]))[0, 1] > 0.6


def test_a_stretch_changes_the_shape_and_a_translation_the_place():
    draw = lambda **more: random_affine(
        64,
        scale=(1.0, 1.0),
        rotation_degrees=0.0,
        aspect=1.0,
        generator=step_generator(0, "affine", 0),
        **more,
    )
    plain, stretched, moved = draw(), draw(stretch=1.44), draw(translation=0.1)
    assert torch.allclose(plain[:, :, :2], torch.eye(2).expand(64, 2, 2))
    ratio = stretched[:, 0, 0] / stretched[:, 1, 1]
    assert ratio.max() < 1.44
    assert ratio.min() > 1 / 1.44
    assert ratio.std() > 0.05
    torch.testing.assert_close(stretched[:, 0, 0] * stretched[:, 1, 1], torch.ones(64))
    assert (plain[:, :, 2] == 0).all()
    assert 0.1 < moved[:, :, 2].abs().max() <= 0.2
