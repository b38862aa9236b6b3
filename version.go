package unum

// Version is the version of the program. The nodes of a cluster run one
// version; a rolling upgrade is not there yet.
const Version = "0.1.0"
