"""What every part leans on: devices, threads, warnings, progress, first weights."""
