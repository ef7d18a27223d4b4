"""scores of slices, as they come -> class probabilities, refined as the model's card says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scipy.special import softmax

from leuda_deploy.engines.engine import Float32
from leuda_deploy.inference.refine.across_slices import AcrossSlices
from leuda_deploy.inference.refine.edges import follow_edges
from leuda_deploy.model.refine import Refine


class Refined:
    """One row of rising slices. Slices may come out later than they go in, in the same order.

    refine         what is done
    probabilities  the scores are after a softmax already
    """

    def __init__(self, refine: Refine, *, probabilities: bool = False) -> None:
        self._edges, self._probabilities = refine.edges, probabilities
        self._across = AcrossSlices() if refine.across_slices else None

    def __call__(
        self, slices: Sequence[int], scores: Float32, images: Float32
    ) -> Iterator[tuple[Sequence[int], Float32]]:
        """The next slices, their scores (n, K, h, w), themselves (n, h, w) -> those done."""
        found: Float32 = scores if self._probabilities else softmax(scores, axis=1)
        if self._edges:
            found = found.copy() if self._probabilities else found
            for of_slice, image in zip(found, images, strict=True):
                follow_edges(of_slice, image)
        if self._across is None:
            yield slices, found
        else:
            yield from self._across(slices, found)

    def finish(self) -> Iterator[tuple[Sequence[int], Float32]]:
        """What was held back for its next neighbour."""
        if self._across is not None:
            yield from self._across.finish()
