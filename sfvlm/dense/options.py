"""How a guide is trained: the options of a run, which are the flags of its command too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GuideOptions:
    """How a guide is trained."""

    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 32
    """Views a step, all at one budget."""
    views: int = 4096
    """Views that encoder and teacher see, once; the last 128 of them measure. Each takes a third of a megabyte on disk and in
    memory while the guide learns."""
    budgets: tuple[int, ...] = (16, 25, 36, 49, 64, 100, 144, 196)
    """Besides the encoder's own, at which half of the views are seen."""
    learning_rate: float = 2e-3
    """Peak rate; it rises over WARM_UP steps and then falls along a cosine."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    warm_up: int = 50
    """Steps in which the rate rises."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Shares of a photo's area that a view shows."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Of weights, views and their order."""
    bf16: bool = False
    """Whether all of it is computed in 16 bits, but for weights and sums."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "views", "warm_up", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        if 128 % self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}; views are kept by 128, which it must divide.")
        least, most = self.crop_scale
        if not 0 < least <= most <= 1:
            raise ValueError(f"crop_scale is {least} to {most}; shares of a photo rise, from more than 0 to at most 1.")
        if not self.budgets:
            raise ValueError("budgets names none: give at least one number of tokens.")
