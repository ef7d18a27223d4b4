"""What step n draws: every row in turn, aligned, and from the seed and n alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny

from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS
from leuda_train.data.aligned_sets import take_rows
from leuda_train.data.batches import Draw, draw_labelled, draw_rows, make_batch, step_generator
from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.hardware import Hardware


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
    return [*batch.labelled, *batch.labels, *batch.unlabelled.values()]


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    sets, draw = tiny.aligned_sets(), tiny.draw()
    straight = [make_batch(sets, draw, tiny.CPU, step) for step in range(4)][3]
    torch.manual_seed(1234)
    alone = make_batch(tiny.aligned_sets(), draw, tiny.CPU, 3)
    for a, b in zip(everything(straight), everything(alone), strict=True):
        assert torch.equal(a, b)
    other = make_batch(sets, tiny.draw(seed=1), tiny.CPU, 3)
    assert not torch.equal(alone.unlabelled["target"], other.unlabelled["target"])


def test_families_are_aligned_before_and_after_the_warp():
    batch = make_batch(tiny.aligned_sets(), tiny.draw(), tiny.CPU, 5)
    assert set(batch.unlabelled) == {*SOURCE_STREAMS, *TARGET_STREAMS}
    for family in (SOURCE_STREAMS, TARGET_STREAMS):
        first = batch.unlabelled[family[0]]
        for offset, stream in enumerate(family):
            torch.testing.assert_close(batch.unlabelled[stream], first + offset)
    assert not torch.equal(batch.labelled[0], batch.unlabelled["source"])


def test_labelled_streams_are_drawn_and_warped_independently():
    """Also one that is named twice."""
    draw = tiny.draw(supervised=("source", "source_cycled", "source"))
    source, cycled, again = make_batch(tiny.aligned_sets(), draw, tiny.CPU, 5).labelled
    assert not torch.allclose(cycled, source + 2)
    assert not torch.equal(again, source)
    assert draw.images_per_step == 3 * 2 + 6 * 2


def test_labels_follow_their_images_through_the_warp():
    sets = tiny.aligned_sets()
    shown = sets.labels.astype(np.float32)
    sets = replace(sets, images=dict(sets.images, source=shown, source_cycled=shown + 2))
    draw = tiny.draw()
    batch = make_batch(sets, draw, tiny.CPU, 0)
    for image, label, stream in zip(batch.labelled, batch.labels, draw.supervised, strict=True):
        shown = image[:, 0] if stream == "source" else image[:, 0] - 2
        sure = (shown - shown.round()).abs() < 0.01
        # interpolation between 0 and 2 passes 1 by chance, so agreement is not quite everywhere
        assert (shown[sure].round().long() == label[sure]).float().mean() > 0.95


def test_only_labelled_rows_are_supervised():
    sets = tiny.aligned_sets()
    sets.images["source"][4:] = 1e6
    for step in range(6):
        batch = make_batch(sets, tiny.draw(), tiny.CPU, step)
        assert batch.labelled[0].max() < 1e3


def test_methods_without_unlabelled_terms_draw_no_unlabelled_images():
    draw = tiny.draw(supervised=("source",), unlabelled=())
    sets = tiny.aligned_sets()
    sets = replace(sets, images={"source": sets.images["source"]})
    batch = make_batch(sets, draw, tiny.CPU, 0)
    assert batch.unlabelled == {}
    assert len(batch.labelled) == 1
    assert [labels.shape for labels in batch.labels] == [(2, 16, 16)]


def test_each_step_warps_anew():
    sets = tiny.aligned_sets(count=1)  # the same row every time
    sets = replace(sets, labelled_rows=np.arange(1))
    first, second = (make_batch(sets, tiny.draw(), tiny.CPU, step) for step in (0, 1))
    assert not torch.equal(first.labelled[0], second.labelled[0])
    assert not torch.equal(first.unlabelled["target"], second.unlabelled["target"])


def test_images_are_channels_last():
    batch = make_batch(tiny.aligned_sets(), tiny.draw(), tiny.CPU, 0)
    for image in (*batch.labelled, *batch.unlabelled.values()):
        assert image.shape == (2, 1, 16, 16)
        assert image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_on_a_gpu_resident_and_pinned_sets_give_the_batch_of_the_cpu(monkeypatch, share):
    monkeypatch.setattr("leuda_train.data.batches.RESIDENT_SHARE", share)
    gpu = Hardware(torch.device("cuda"), "fp32")
    sets = tiny.aligned_sets().on_device(gpu)
    assert all(isinstance(images, torch.Tensor) == (share > 0) for images in sets.images.values())
    found = make_batch(sets, tiny.draw(), gpu, 3)
    expected = make_batch(tiny.aligned_sets(), tiny.draw(), tiny.CPU, 3)
    for a, b in zip(everything(found), everything(expected), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-4)


def test_rows_of_a_resident_set_are_those_of_the_mapped_one():
    images = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    rows = np.array([4, 0, 4])
    mapped = take_rows(images, rows, tiny.CPU)
    assert torch.equal(mapped, take_rows(torch.from_numpy(images), rows, tiny.CPU))
    assert mapped.tolist() == images[rows].tolist()


def self_training(**changed: object) -> Draw:
    objective = {"supervised": ("source",), "unlabelled": ("target",), "restyle_target": True}
    return tiny.draw(**{**objective, **changed})


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


def test_pseudo_labels_of_scans_follow_their_images_and_give_way_to_pasted_ones():
    sets = tiny.aligned_sets()
    pseudo = torch.from_numpy((sets.images["target"] > 0.5).astype(np.uint8))
    images = dict(sets.images, target=pseudo.float().numpy(), source=sets.labels + np.float32(100))
    sets = replace(sets, images=images)
    batch = make_batch(sets, self_training(copy_paste=1.0), tiny.CPU, 0, pseudo)
    shown, pasted = batch.strong[:, 0], batch.strong[:, 0] > 50.0
    sure = (shown - shown.round()).abs() < 0.01
    for region, offset in ((pasted, 100), (~pasted, 0)):
        agree = (shown - offset).round().long() == batch.known
        assert agree[sure & region].float().mean() > 0.95


def test_a_share_of_the_labelled_batch_shows_structures():
    sets = tiny.aligned_sets(count=8)
    sets.labels[3:] = 0
    sets = replace(sets, labelled_rows=np.arange(8))
    assert sets.structure_rows.tolist() == [0, 1, 2]
    assert sets.classes == 3
    draw = tiny.draw(labelled_count=8, structure_share=0.75)
    drawn = np.stack([draw_labelled(sets, draw, step, "labelled") for step in range(12)])
    assert ((drawn < 3).sum(axis=1) == 6).all()
    assert set(drawn.ravel().tolist()) == set(range(8))


def test_class_shares_are_those_of_the_labelled_rows():
    sets = tiny.aligned_sets()
    labels = np.zeros_like(sets.labels)
    labels[:4, :8], labels[4:] = 2, 1
    shares = replace(sets, labels=labels).class_shares
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.5]))


def test_coarse_pixels_show_the_same_field_of_view():
    draw = tiny.draw(size=(8, 8))
    coarse, full = (make_batch(tiny.aligned_sets(), d, tiny.CPU, 5) for d in (draw, tiny.draw()))
    assert coarse.labelled[0].shape == coarse.unlabelled["target"].shape == (2, 1, 8, 8)
    assert coarse.labels[0].shape == (2, 8, 8)
    # each coarse pixel lies between four fine ones
    fine = torch.nn.functional.avg_pool2d(full.labelled[0], 2)
    assert torch.corrcoef(torch.stack([fine.flatten(), coarse.labelled[0].flatten()]))[0, 1] > 0.6
