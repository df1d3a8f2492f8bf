"""Reference models: the networks that papers on sparse training report, at the sizes they use.

Each is a function of ``num_classes`` and ``in_channels``; those whose first layer depends on it
take ``image_size`` too. Weights are random. ``st3fx:NAME`` is their SPEC.

The parts that the reference models of ``st3fx.models`` are made of.
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


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 for CIFAR, 0.27 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(3, num_classes, in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-32 for CIFAR, 0.46 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(5, num_classes, in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56 for CIFAR, 0.85 M parameters (He et al. 2015, Deep residual learning, 4.2)."""
    return CifarResNet(9, num_classes, in_channels)


def vgg19_bn(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-19 with batch norm for small images, 20.0 M parameters.

    Configuration E of Simonyan and Zisserman 2014 with a global pool and one linear layer in place
    of the three, as papers on pruning train it on CIFAR (Liu et al. 2017, Network slimming).
    """
    layers: list[nn.Module] = []
    for depth, width in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += conv_norm_relu(in_channels, width, 3)
            in_channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)]
    model = nn.Sequential(*layers, *head)
    kaiming(model)
    return model


def wide_resnet(
    *, num_classes: int = 10, in_channels: int = 3, depth: int = 28, width: int = 10
) -> nn.Module:
    """Wide residual network, WRN-28-10 with 36.5 M parameters by default.

    Source: Zagoruyko and Komodakis 2016, without dropout.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        depth: Convolutions on the longest path; 6 n + 4.
        width: Factor of the widths 16, 32 and 64.

    Raises:
        ValueError: When the depth is not 6 n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth is {depth}; it must be 6 n + 4, e.g. 16, 22, 28 or 40")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    width_in = 16
    for stage, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(WideBlock(width_in, stage * width, stride if block == 0 else 1))
            width_in = stage * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, num_classes)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(width_in), nn.ReLU(), *head)
    kaiming(model)
    return model


def mobilenet_v1(
    *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, stem_stride: int = 1
) -> nn.Module:
    """MobileNet, 3.2 M parameters with ten classes (Howard et al. 2017, table 1).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        width: The paper's multiplier α; widths are rounded down.
        stem_stride: Of the first convolution: 1 for images of about 32 pixels, 2 as in the paper
            for those of 224.
    """
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    stages += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    size = int(32 * width)
    layers = conv_norm_relu(in_channels, size, 3, stem_stride)
    for base, stride in stages:
        layers += conv_norm_relu(size, size, 3, stride, groups=size)
        layers += conv_norm_relu(size, int(base * width), 1)
        size = int(base * width)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, num_classes)]
    model = nn.Sequential(*layers, *head)
    kaiming(model)
    return model


def lenet_300_100(
    *, num_classes: int = 10, in_channels: int = 1, image_size: int = 28
) -> nn.Module:
    """Two hidden layers of 300 and 100 units, 0.27 M parameters (LeCun et al. 1998, III.C.5)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def lstm_rows(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    hidden: int = 128,
    layers: int = 2,
) -> nn.Module:
    """LSTM over the rows of an image, 0.21 M parameters (Liu et al. 2020, Dynamic sparse training).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the input.
        image_size: Width of the images in pixels.
        hidden: Size of each layer's state; the paper has 128 and 256.
        layers: How many lie above one another.
    """
    return RowLstm(in_channels * image_size, hidden, layers, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "vgg19_bn": vgg19_bn,
    "wide_resnet": wide_resnet,
    "mobilenet_v1": mobilenet_v1,
    "lenet_300_100": lenet_300_100,
    "lstm_rows": lstm_rows,
}
"""Name -> function."""
