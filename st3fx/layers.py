"""The parts that the reference models of ``st3fx.models`` are made of."""

from __future__ import annotations

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


class WideBlock(nn.Module):
    """Norm, ReLU and convolution, twice; where the width changes, a 1×1 convolution beside them."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        """Map ``width_in`` to ``width`` channels."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(width_in, width, 1, stride, bias=False) if width != width_in else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """NCHW to NCHW, height and width divided by the stride."""
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + x  # type: ignore[no-any-return]


class RowLstm(nn.Module):
    """Reads an image from top to bottom, one row per step; a linear layer on the last state."""

    def __init__(self, row: int, hidden: int, layers: int, num_classes: int) -> None:
        """Rows of ``row`` values, all channels together."""
        super().__init__()
        self.lstm = nn.LSTM(row, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images in NCHW to logits."""
        states = self.lstm(x.transpose(1, 2).flatten(2))[0]
        return self.fc(states[:, -1])  # type: ignore[no-any-return]


def kaiming(model: nn.Module) -> None:
    """Draw convolutions and linear layers as He et al. 2015 (Delving deep into rectifiers) do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def conv_norm_relu(
    width_in: int, width: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, batch norm, and ReLU."""
    convolution = nn.Conv2d(
        width_in, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]
