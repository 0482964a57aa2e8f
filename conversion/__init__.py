"""Conversion of original Show-o weights to this package and back, and export to ONNX."""
