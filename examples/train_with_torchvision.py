"""What torchvision's references/classification/train.py needs to train sparse.

The lines marked ``# st3fx``, at the same places; the rest is what that script does, in its order,
and runs on random images.
"""

from pathlib import Path

import torch
import torchvision
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import st3fx  # st3fx


def main(folder: Path, epochs: int = 3) -> torch.nn.Module:
    """Train a ShuffleNet and give back the folded average."""
    data = TensorDataset(torch.rand(16, 3, 32, 32), torch.arange(16) % 4)  # yours
    mix = v2.MixUp(num_classes=4)
    loader = DataLoader(data, 8, collate_fn=lambda b: mix(torch.utils.data.default_collate(b)))
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    example, steps = torch.zeros(2, 3, 32, 32), epochs * len(loader)
    method = st3fx.ST3(0.8, normalize="sigma")  # st3fx
    model, sparsifier = st3fx.convert(model, example, method, total_steps=steps)  # st3fx
    folder.mkdir(parents=True, exist_ok=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    sparsifier.attach(optimizer)  # st3fx
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        model.train()
        for image, target in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(image), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            average.update_parameters(model)
        scheduler.step()
        state = {"model": model.state_dict(), "model_ema": average.state_dict(), "epoch": epoch}
        torch.save(state, folder / "checkpoint.pth")
    return st3fx.fold(average)  # st3fx


if __name__ == "__main__":
    main(Path())
