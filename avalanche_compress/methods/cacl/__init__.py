"""Every task adds few rank-one terms to frozen ones: CACL."""
