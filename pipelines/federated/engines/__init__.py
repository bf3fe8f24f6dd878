"""How jobs reach sites: engines that run the same site code in process or across organisations."""
