"""The torch side: checkpoints, architectures, surgery, fine-tuning, distillation, importance."""
