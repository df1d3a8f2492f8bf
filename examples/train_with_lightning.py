"""Lightning's Trainer, sparse: the lines marked ``# st3fx`` are what is added."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import st3fx
from st3fx.integrations.lightning import SparseCallback  # st3fx


class Net(LightningModule):
    """Yours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        self.example_input_array = torch.zeros(2, 8)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Any:
        """The loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        """What the best is chosen by."""
        self.log("loss", self.training_step(batch, index))

    def configure_optimizers(self) -> Any:
        """Of the latent weights."""
        return torch.optim.AdamW(self.parameters(), 1e-2)


def main(folder: Path, epochs: int = 6) -> nn.Module:
    """Train, and give back the folded average."""
    x = torch.randn(64, 8)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16)
    sparse = SparseCallback(st3fx.ST3(0.8, normalize="sigma"))  # st3fx
    best = ModelCheckpoint(folder, monitor="loss")
    trainer = Trainer(
        callbacks=[sparse, EMAWeightAveraging(decay=0.9), best],  # st3fx: before what averages
        max_epochs=epochs, default_root_dir=folder, logger=False, log_every_n_steps=1,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Net(), loader, loader)
    assert sparse.folded is not None
    return sparse.folded  # st3fx


if __name__ == "__main__":
    print(main(Path("lightning-out")))  # noqa: T201
