"""What a student is to match: the weights of the parts of the loss, which `sfvlm.bootstrap.alignment` computes."""

from dataclasses import dataclass, replace

from ..util.choices import Anchor, Salient


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss.

    Attributes:
        pooled: Weight of `pooled_cosine`. With a host, and neither `projected` nor `answers` given, 1 counts as not asked for.
        tokens: Weight of `anchored_tokens`, for hosts that read tokens; 0 leaves them free. With a host, and neither
            `projected` nor `answers` given, 1 instead of 0, at the host's own layer.
        layer: The teacher's layer whose tokens are matched, as LLaVA counts (-2: the last block but one; 0 and more: from the
            front).
        projected: Weight of `projected_tokens`; needs a host, whose own layer counts.
        answers: Weight of `answer_divergence`; needs a host.
        dense: Weight of `dense_error`, for segmentation: of a guide, trained together with the student, that makes the teacher's own
            map of every patch.
        saliency: Weight of `saliency_error`, for students that choose where to look.
        salient: What makes a patch worth looking at: the attention that it gets in the teacher, or how much a host's words
            depend on it, which needs `answers` and a third more time.
        anchor: What a token is held to: the mean of the teacher's tokens in its cell, or the one nearest to its middle; a
            chosen patch always to its own.
    """

    pooled: float = 1.0
    tokens: float = 0.0
    layer: int = -2
    projected: float = 0.0
    answers: float = 0.0
    dense: float = 0.0
    saliency: float = 1.0
    salient: Salient = "attention"
    anchor: Anchor = "average"

    @property
    def needs_host(self) -> bool:
        """Whether a part of it is what a host makes of the tokens."""
        return bool(self.projected or self.answers)

    def from_end(self, teacher_depth: int, student_depth: int) -> "Objective":
        """The same with its layer counted from the end, where a teacher and a student of fewer blocks agree.

        Raises:
            ValueError: Tokens are matched at a layer that one of them has not.
        """
        from ..encoder.configuration import layer_from_end

        layer = layer_from_end(self.layer, teacher_depth)
        if self.tokens and not -student_depth - 1 <= layer <= -1:
            raise ValueError(
                f"The objective's layer is {self.layer}, and the teacher's {teacher_depth} blocks and the student's {student_depth} "
                f"have hidden states {-student_depth - 1} to -1 in common."
            )
        return replace(self, layer=layer)
