"""All public names of st3fx, which ``import st3fx`` finds here."""

from st3fx.api import convert, dataflow, fold
from st3fx.bench.bench_result import BenchResult
from st3fx.bench.variant import BenchSettings
from st3fx.commands.analyze import count_flops
from st3fx.commands.bench import benchmark
from st3fx.commands.compare import compare
from st3fx.commands.convert import load_bundle, save_bundle
from st3fx.commands.export import eliminate_dead_channels, export_onnx
from st3fx.commands.quantize import quantize
from st3fx.commands.report import write_report
from st3fx.commands.sensitivity import sensitivity
from st3fx.commands.sweep import sweep
from st3fx.errors import EmptyLayerWarning, St3fxError
from st3fx.export.export_result import ExportResult
from st3fx.files.compact import load_compact, save_compact
from st3fx.flops.flops_report import FlopsReport
from st3fx.methods import (
    ACDC,
    DST,
    GMP,
    LRR,
    ST3,
    STR,
    Feather,
    GraNet,
    Method,
    ProbMask,
    RigL,
)
from st3fx.plan.example import Call
from st3fx.plan.sites import SparsityPlan
from st3fx.quantization.quantize_result import QuantizeResult
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.granularity import NM, Block, Channels, Unstructured
from st3fx.sparsity.schedule import CubicSchedule
from st3fx.training.sensitivity import SensitivityResult

__all__ = [
    "ACDC",
    "DST",
    "GMP",
    "LRR",
    "NM",
    "ST3",
    "STR",
    "BenchResult",
    "BenchSettings",
    "Block",
    "Call",
    "Channels",
    "CubicSchedule",
    "EmptyLayerWarning",
    "ExportResult",
    "Feather",
    "FlopsReport",
    "GraNet",
    "Method",
    "ProbMask",
    "QuantizeResult",
    "RigL",
    "SensitivityResult",
    "Sparsifier",
    "SparsityPlan",
    "St3fxError",
    "Unstructured",
    "benchmark",
    "compare",
    "convert",
    "count_flops",
    "dataflow",
    "eliminate_dead_channels",
    "export_onnx",
    "fold",
    "load_bundle",
    "load_compact",
    "quantize",
    "save_bundle",
    "save_compact",
    "sensitivity",
    "sweep",
    "write_report",
]
