"""What is minimised: predictions, the losses of their labels, Hessians along directions."""
