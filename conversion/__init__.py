"""Original Show-o weights in and out."""
