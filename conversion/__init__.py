"""Original Show-o weights: their names here and there."""
