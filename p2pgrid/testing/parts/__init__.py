"""What a simulated machine is made of: disk, processor, workers, signatures."""
