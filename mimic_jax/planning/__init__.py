"""What a training run would need and take, told by the compiler before a chip is rented."""
