"""What shows the server's series: dashboard, rules, and how both are set up."""
