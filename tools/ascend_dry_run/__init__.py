"""Ascend graphs compiled without a device: MindSpore's front end, kernel selection and memory planning on stub CANN."""
