"""Who trains, and the loop that has it done."""
