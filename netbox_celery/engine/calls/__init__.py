"""What a call is: its task, its options and arguments, its policies, its queue. Nothing is sent from here."""
