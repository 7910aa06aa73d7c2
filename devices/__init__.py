"""edgellm.devices: what is known of boards, and of the machine this runs on."""
