"""The table of probes, in the order of the report."""

from __future__ import annotations

from st3fx.doctor.probe import Probe

MACHINE, MAIN, FASTER, MORE = "machine", "main path", "faster", "more"

_INSTALL_AGAIN = "install st3fx again, into a fresh virtual environment"

PROBES: tuple[Probe, ...] = (
    Probe(MACHINE, "python", "st3fx.doctor.machine:python", "nothing works", _INSTALL_AGAIN),
    Probe(MACHINE, "processor", "st3fx.doctor.machine:processor", "nothing else is affected"),
    Probe(MACHINE, "threads", "st3fx.doctor.machine:threads", "training uses one core"),
    Probe(MACHINE, "memory", "st3fx.doctor.machine:memory", "large models may not fit"),
    Probe(MACHINE, "disk", "st3fx.doctor.machine:disk", "runs cannot be written here",
          "go to a folder that you may write to, or give --output-dir"),
    Probe(MACHINE, "accelerator", "st3fx.doctor.machine:accelerator",
          "training and tracing run on the CPU"),
    Probe(MACHINE, "bf16", "st3fx.doctor.machine:mixed_precision", "--amp does not work",
          "train with --precision no"),
    Probe(MAIN, "torch", "st3fx.doctor.main_path:torch_build", "nothing works", _INSTALL_AGAIN,
          required=True),
    Probe(MAIN, "packages", "st3fx.doctor.main_path:packages",
          "the versions of what st3fx needs are not known", "pip install -e ."),
    Probe(MAIN, "data", "st3fx.doctor.main_path:shipped_data",
          "st3fx demo and training without --data do not work", _INSTALL_AGAIN, required=True),
    Probe(MAIN, "convert and fold", "st3fx.doctor.main_path:convert_and_fold",
          "no command works", _INSTALL_AGAIN, required=True),
    Probe(MAIN, "train", "st3fx.doctor.main_path:train", "st3fx train does not work",
          "pip install --upgrade accelerate tensorboard matplotlib", required=True),
    Probe(MAIN, "export", "st3fx.doctor.main_path:export", "st3fx export does not work",
          "pip install --upgrade onnx onnxscript onnx-ir onnxruntime", required=True),
    Probe(MAIN, "analyze", "st3fx.doctor.main_path:count", "st3fx analyze does not work",
          _INSTALL_AGAIN, required=True),
    Probe(FASTER, "sparse kernels", "st3fx.doctor.faster:kernels",
          "sparse models run in ONNX Runtime as fast as dense ones", _INSTALL_AGAIN),
    Probe(FASTER, "torch.compile", "st3fx.doctor.faster:compiler",
          "st3fx train --torchcompile does not work",
          "leave --torchcompile out, or update torch and g++", limit=180.0),
    Probe(FASTER, "Triton kernels", "st3fx.doctor.faster:triton_kernels",
          "on a GPU thresholds are searched with PyTorch's own operators, which takes longer",
          "pip install --upgrade triton, in a version that fits torch"),
    Probe(MORE, "timm", "st3fx.doctor.extras:timm", "timm:NAME is no SPEC here",
          "pip install --upgrade timm"),
    Probe(MORE, "transformers", "st3fx.doctor.extras:transformers",
          "models of yours that import it do not load", "pip install --upgrade transformers"),
    Probe(MORE, "fashion-mnist", "st3fx.doctor.extras:fashion_mnist",
          "--data fashion-mnist needs --data-path", "apt install dataset-fashion-mnist"),
)  # fmt: skip
