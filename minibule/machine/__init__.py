"""What the machine is asked: threads, memory, matrices in 16 bits."""
