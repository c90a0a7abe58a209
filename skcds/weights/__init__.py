"""What weighted draws tell, and what makes them better."""
