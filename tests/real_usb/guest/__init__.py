"""Programs that run inside the USB machine: pytest files, only not found by pytest outside."""
