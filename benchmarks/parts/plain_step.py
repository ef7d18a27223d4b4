"""The same iteration, plainly: one stream after another, float32, nothing batched, nothing fused.

What `benchmarks/training.py` compares the training step with, written as research code of this kind
is, the released MT-UDA code among it:

- a forward a stream: one for each labelled stream and for each unlabelled one that the objective
  asks of a network (for LE-UDA five of the student, three of each teacher); the batch of a
  stream is the config's, and features are taken from these passes, as ours are
- augmentation an image at a time in NumPy and SciPy, then torch.from_numpy
- contiguous NCHW, float32, torch's default Adam and allocator
- teachers moved parameter by parameter in Python
- every loss term read back with .item() at every step

Networks, losses, data order, warps and noise are those of `leuda_train`, so the losses of the two
are the same numbers (tests/test_plain_step.py) if batch norm runs by stream and nothing drops out.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from leuda_train.config.schema import TrainConfig
from leuda_train.config.streams import SOURCE_STREAMS, TARGET_STREAMS, Stream
from leuda_train.data.aligned_sets import AlignedSets
from leuda_train.data.augment.affine import random_affine
from leuda_train.data.batches import draw_rows, step_generator
from leuda_train.networks.discriminators import FeatureDiscriminator
from leuda_train.networks.unet import UNet
from leuda_train.objective import losses
from leuda_train.objective.ema import ema_decay
from leuda_train.objective.schedules import lambdas, learning_rate


class PlainLoop:
    """LE-UDA without self-training, with teachers that normalise by their own domain."""

    def __init__(self, sets: AlignedSets, config: TrainConfig, device: torch.device) -> None:
        assert config.objective.lambda_pseudo == 0, "not part of the plain loop"
        assert config.objective.teacher_batchnorm == "own", "not part of the plain loop"
        self.sets, self.config, self.device = sets, config, device
        torch.manual_seed(config.seed)
        self.student = UNet(sets.classes, config.unet.widths, config.unet.dropout).to(device)
        self.intra_teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.inter_teacher = copy.deepcopy(self.student).requires_grad_(False)
        levels, width = config.adversarial.levels, config.adversarial.width
        channels = [config.unet.widths[level - 1] for level in levels]
        places = [-level for level in levels]
        self.intra_discriminator = FeatureDiscriminator(channels, places, width).to(device)
        self.inter_discriminator = FeatureDiscriminator(channels, places, width).to(device)
        discriminators = [
            *self.intra_discriminator.parameters(),
            *self.inter_discriminator.parameters(),
        ]
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3)
        self.discriminator_optimizer = torch.optim.Adam(
            discriminators, lr=config.adversarial.learning_rate, betas=(0.5, 0.999)
        )

    def step(self, step: int) -> dict[str, float]:
        """One iteration; the loss terms."""
        config, objective = self.config, self.config.objective
        λ = lambdas(step // config.schedule.steps_per_epoch, objective)
        rate = learning_rate(step, config.schedule, objective.warmup_epochs)
        self.optimizer.param_groups[0]["lr"] = rate
        labelled, labels, x = self._batch(step)

        # --- forwards, one stream after another
        p_labelled = [self.student(images)[0] for images in labelled]
        p, f = {}, {}
        for stream in objective.student_streams:
            p[stream], f[stream] = self.student(x[stream])
        q_intra, q_inter, g_intra, g_inter = {}, {}, {}, {}
        noise = step_generator(config.seed, "teacher noise", step)
        with torch.no_grad():
            for stream in objective.intra_streams:
                noisy = self._noisy(x[stream], noise)
                q_intra[stream], g_intra[stream] = self.intra_teacher(noisy)
            for stream in objective.inter_streams:
                noisy = self._noisy(x[stream], noise)
                q_inter[stream], g_inter[stream] = self.inter_teacher(noisy)

        # --- the objective
        l_seg = sum(map(losses.segmentation_loss, p_labelled, labels))
        l_intra = sum(losses.intra_consistency(p[s], q_intra[s]) for s in objective.intra_on)
        q = {**q_intra, **q_inter}
        l_inter = sum(losses.inter_consistency(p[s], q[t]) for s, t in objective.inter_pairs)
        intra_fakes, inter_fakes = objective.adv_intra_student, objective.adv_inter_student
        l_adv_intra = self._adversarial(self.intra_discriminator, [f[s] for s in intra_fakes])
        l_adv_inter = self._adversarial(self.inter_discriminator, [f[s] for s in inter_fakes])
        total = l_seg + λ.intra * l_intra + λ.inter * l_inter
        total = total + λ.adv_intra * l_adv_intra + λ.adv_inter * l_adv_inter
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

        # --- discriminators
        self.discriminator_optimizer.zero_grad()
        real = {s: g_intra[s] for s in objective.adv_intra_teacher}
        l_d = self._of_discriminator(self.intra_discriminator, real, f, intra_fakes)
        real = {s: g_inter[s] for s in objective.adv_inter_teacher}
        l_d = l_d + self._of_discriminator(self.inter_discriminator, real, f, inter_fakes)
        l_d.backward()
        self.discriminator_optimizer.step()

        # --- teachers
        decay = ema_decay(step, objective.ema_decay)
        for teacher in (self.intra_teacher, self.inter_teacher):
            for theirs, ours in zip(teacher.parameters(), self.student.parameters(), strict=True):
                theirs.data.mul_(decay).add_(ours.data, alpha=1 - decay)
        terms = {"L": total, "L_seg": l_seg, "L_con_intra": l_intra, "L_con_inter": l_inter}
        terms |= {"L_adv_intra": l_adv_intra, "L_adv_inter": l_adv_inter, "L_D": l_d}
        return {name: term.item() for name, term in terms.items()}

    def _noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator) * self.config.objective.teacher_noise
        limit = self.config.objective.teacher_noise_limit
        return images + noise.clamp(-limit, limit).to(self.device)

    def _adversarial(
        self, discriminator: FeatureDiscriminator, streams: list[list[Tensor]]
    ) -> Tensor:
        scores = [score for features in streams for score in discriminator(features)]
        return sum(losses.adversarial_loss(score) for score in scores) / len(scores)

    def _of_discriminator(
        self,
        discriminator: FeatureDiscriminator,
        real: dict[Stream, list[Tensor]],
        fake: dict[Stream, list[Tensor]],
        fakes: tuple[Stream, ...],
    ) -> Tensor:
        shown = [score for features in real.values() for score in discriminator(features)]
        total = sum(0.5 * (score - 1.0).square().mean() for score in shown) / len(shown)
        made = [
            s for stream in fakes for s in discriminator([part.detach() for part in fake[stream]])
        ]
        return total + sum(0.5 * score.square().mean() for score in made) / len(made)

    def _batch(self, step: int) -> tuple[list[Tensor], list[Tensor], dict[Stream, Tensor]]:
        config, sets = self.config, self.sets
        count = config.schedule.batch_labelled
        labelled, labels = [], []
        for number, stream in enumerate(config.objective.supervised_on):
            purpose = f"labelled {number}" if number else "labelled"
            rows = draw_rows(sets.labelled_rows, count, step, config.seed, purpose)
            affine = self._affine(len(rows), purpose, step)
            labelled.append(self._tensor(_warped(sets.images[stream], rows, affine, 1)))
            planes = _warped(sets.labels, rows, affine, 0).astype(np.int64)
            labels.append(torch.from_numpy(planes).to(self.device))
        x: dict[Stream, Tensor] = {}
        for family in (SOURCE_STREAMS, TARGET_STREAMS):
            every = np.arange(len(sets.images[family[0]]))
            count = config.schedule.batch_unlabelled
            rows = draw_rows(every, count, step, config.seed, family[0])
            affine = self._affine(len(rows), family[0], step)
            for stream in family:
                x[stream] = self._tensor(_warped(sets.images[stream], rows, affine, 1))
        return labelled, labels, x

    def _affine(self, count: int, purpose: str, step: int) -> NDArray[np.float64]:
        height, width = self.config.recipe.window
        return random_affine(
            count,
            self.config.augment,
            aspect=height / width,
            generator=step_generator(self.config.seed, f"warp/{purpose}", step),
        ).numpy()

    def _tensor(self, images: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(images[:, None]).to(self.device)


def _warped(images: NDArray, rows: NDArray, affine: NDArray, order: int) -> NDArray:
    """Rows of images (N, h, w), one by one, each under its affine (2, 3)."""
    return np.stack([_warp(images[row], a, order) for row, a in zip(rows, affine, strict=True)])


def _warp(image: NDArray, affine: NDArray[np.float64], order: int) -> NDArray:
    """One image (h, w) under an affine (2, 3) in the normalised coordinates of affine_grid."""
    height, width = image.shape
    (a, b, _), (c, d, _) = affine
    matrix = np.array([[d, c * height / width], [b * width / height, a]])
    centre = (np.array([height, width]) - 1) / 2
    offset = centre - matrix @ centre
    return ndimage.affine_transform(
        image, matrix, offset, order=order, mode="nearest", prefilter=False
    )
