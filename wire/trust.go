package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"unum"
)

// nameSuffix ends the DNS name in a node's certificate.
const nameSuffix = ".unum"

// Authority signs the certificates of a cluster's nodes.
type Authority struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Files of a node's TLS folder.
const (
	caFile    = "ca.pem"
	caKeyFile = "ca.key"
	certFile  = "node.pem"
	keyFile   = "node.key"
)

// NewAuthority makes a certificate authority for a cluster of that name.
func NewAuthority(cluster string, life time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "unum " + cluster},
		NotBefore:             now.Add(-time.Hour), // clocks of nodes differ
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, key: key}, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	return n
}

// Pool returns the pool that holds just this authority.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

// Issue makes a certificate and key for a node.
func (a *Authority) Issue(node unum.NodeID, life time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: string(node)},
		DNSNames:     []string{string(node) + nameSuffix},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, &key.PublicKey, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// Save writes the authority's certificate and key into dir (ca.pem, ca.key).
func (a *Authority) Save(dir string) error {
	if err := writePEM(filepath.Join(dir, caFile), "CERTIFICATE", a.Cert.Raw); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, caKeyFile), a.key)
}

// LoadAuthority reads what Authority.Save wrote.
func LoadAuthority(dir string) (*Authority, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	key, ok := c.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("load authority: %s: not an ECDSA key", filepath.Join(dir, caKeyFile))
	}
	cert, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	return &Authority{Cert: cert, key: key}, nil
}

// SaveNode writes what a node needs into dir: ca.pem, node.pem, node.key, all
// 0600. The authority's key is not among them.
func (a *Authority) SaveNode(dir string, cert tls.Certificate) error {
	if err := writePEM(filepath.Join(dir, caFile), "CERTIFICATE", a.Cert.Raw); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, certFile), "CERTIFICATE", cert.Certificate[0]); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, keyFile), cert.PrivateKey)
}

// LoadNode reads what SaveNode wrote: what Config.Cert and Config.CA take.
func LoadNode(dir string) (tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("load node certificate: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("load authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return tls.Certificate{}, nil, fmt.Errorf("load authority: %s holds no certificate", filepath.Join(dir, caFile))
	}
	return cert, pool, nil
}

func writeKey(path string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

// writePEM replaces path as a whole, mode 0600.
func writePEM(path, kind string, der []byte) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// serverTLS is the configuration that ends TLS for one ALPN ("" is none).
func serverTLS(cert *tls.Certificate, ca *x509.CertPool, alpn string) *tls.Config {
	c := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{*cert},
		ClientAuth:                  tls.RequireAndVerifyClientCert,
		ClientCAs:                   ca,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	if alpn != "" {
		c.NextProtos = []string{alpn}
	}
	return c
}

// clientTLS is the configuration that dials node for one ALPN.
func clientTLS(cert *tls.Certificate, ca *x509.CertPool, node unum.NodeID, alpn string) *tls.Config {
	c := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{*cert},
		RootCAs:                     ca,
		ServerName:                  string(node) + nameSuffix,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	if alpn != "" {
		c.NextProtos = []string{alpn}
	}
	return c
}

// nodeOf returns the name in a verified certificate.
func nodeOf(cert *x509.Certificate) (unum.NodeID, error) {
	name := cert.Subject.CommonName
	if name == "" || len(cert.DNSNames) != 1 || !strings.EqualFold(cert.DNSNames[0], name+nameSuffix) {
		return "", fmt.Errorf("%w: certificate is not a node's", unum.ErrDenied)
	}
	return unum.NodeID(name), nil
}
