"""What each stage minimises: a batch dict in, (loss, metrics) out. No device, no optimiser, no process group."""
