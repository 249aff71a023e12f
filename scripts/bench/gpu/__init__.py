"""What gpu.sh measures besides the other benchmarks: ceilings, kernels' time, compiled steps; and its table."""
