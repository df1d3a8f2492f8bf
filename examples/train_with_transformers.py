"""Hugging Face's Trainer, sparse: the lines marked ``# st3fx`` are what is added."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import st3fx
from st3fx.integrations.transformers import sparsify  # st3fx


class Numbers(torch.utils.data.Dataset):
    """Counting sequences; yours in their place."""

    def __len__(self) -> int:
        """How many."""
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Words, and the same as labels."""
        words = (index + torch.arange(16)) % 50
        return {"input_ids": words, "labels": words}


def main(folder: Path, steps: int = 8) -> torch.nn.Module:
    """Train a small Llama; what is saved in the end is sparse and plain."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    settings = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        eval_strategy="steps", eval_steps=steps // 4, save_steps=steps // 4, save_total_limit=2,
        load_best_model_at_end=True, report_to=[], use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=Numbers(), eval_dataset=Numbers())
    sparsify(trainer, st3fx.ST3(0.8))  # st3fx
    trainer.train()
    trainer.save_model(str(folder / "sparse"))
    return model


if __name__ == "__main__":
    main(Path("huggingface-out"), steps=400)
