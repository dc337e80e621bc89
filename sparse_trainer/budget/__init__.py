"""From scores and costs to what stays: functions on tensors."""
