"""What `tollgate doctor` looks at, each as rows of findings."""
