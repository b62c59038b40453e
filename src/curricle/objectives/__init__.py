"""What a stage minimizes: projections, losses and the objectives made of them."""
