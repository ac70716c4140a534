"""From low-resolution logits to labels: windows, gate, fusion, ranking."""
