"""Reference models: the networks that papers on sparse training report, at the sizes they use.

Each is a function of ``num_classes`` and ``in_channels``; those whose first layer depends on it
take ``image_size`` too. Weights are random. ``st3fx:NAME`` is their SPEC.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters.

    Where the shape changes, the shortcut takes every second pixel and adds channels of zeros, half
    of them on each side (option A of He et al. 2015).
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        """Map ``width_in`` to ``width`` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.added = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """NCHW to NCHW, height and width divided by the stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels for small images (He et al. 2015, section 4.2)."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        """``blocks`` of two convolutions per stage."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, 1)
        self.layer2 = self._stage(blocks, 16, 32, 2)
        self.layer3 = self._stage(blocks, 32, 64, 2)
        self.fc = nn.Linear(64, num_classes)
        kaiming(self)

    @staticmethod
    def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
        first = BasicBlock(width_in, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images in NCHW to logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def kaiming(model: nn.Module) -> None:
    """Draw convolutions and linear layers as He et al. 2015 (Delving deep into rectifiers) do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 for CIFAR, 0.27 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(3, num_classes, in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-32 for CIFAR, 0.46 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(5, num_classes, in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56 for CIFAR, 0.85 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(9, num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
}
"""Name -> function."""
