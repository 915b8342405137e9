"""Networks that enlarge images: ESRGAN and Real-ESRGAN."""
