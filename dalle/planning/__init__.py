"""What a training of the prior will take, before it is begun: memory, traffic, time. Asked of the code that trains."""
