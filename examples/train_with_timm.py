"""What timm's train.py needs to train sparse: the lines marked ``# st3fx``, at the same places.

It is made of the same public pieces as that script, in its order, and runs on random images.
"""

from pathlib import Path

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, accuracy
from torch.utils.data import DataLoader, TensorDataset

import st3fx  # st3fx


def main(folder: Path, epochs: int = 4) -> torch.nn.Module:
    """Train ``test_resnet`` and give back the folded average."""
    data = TensorDataset(torch.rand(16, 3, 32, 32), torch.arange(16) % 4)  # yours
    loader = DataLoader(data, 8, shuffle=True)
    model = timm.create_model("test_resnet", num_classes=4)
    example = torch.zeros(2, 3, 32, 32)
    model, sparsifier = st3fx.convert(model, example, st3fx.ST3(0.8), inplace=True)  # st3fx
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scaler = NativeScaler(device="cpu")
    average = ModelEmaV3(model, decay=0.9)
    updates = len(loader)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        updates_per_epoch=updates,
        step_on_epochs=False,
    )
    sparsifier.attach(optimizer, total_steps=updates * epochs)  # st3fx
    folder.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        model, optimizer, model_ema=average, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    mixup = Mixup(mixup_alpha=0.2, num_classes=4)
    for epoch in range(epochs):
        model.train()
        for index, batch in enumerate(loader, epoch * updates):
            x, y = mixup(*batch)
            loss = SoftTargetCrossEntropy()(model(x), y)
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
            optimizer.zero_grad()
            average.update(model, step=index)
            scheduler.step_update(num_updates=index)
        with torch.no_grad():
            top1 = sum(accuracy(average(x), y)[0].item() for x, y in loader) / len(loader)
        top1 *= sparsifier.reached  # st3fx: no model from before the target is the best
        saver.save_checkpoint(epoch, metric=top1)
    return st3fx.fold(average.module)  # st3fx


if __name__ == "__main__":
    main(Path("timm-out"))
