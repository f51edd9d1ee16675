"""What a run will cost, before anything is rented: FLOPs, memory, time."""
