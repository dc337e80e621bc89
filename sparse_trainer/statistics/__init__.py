"""What a model does on a calibration set, collected in one streaming pass: exactly what the criteria ask for."""
