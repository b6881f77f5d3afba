#include "server/frontend/http_transport.h"

#include <algorithm>
#include <array>

#include <boost/asio/ssl.hpp>

namespace longstride::frontend {
namespace {

void CloseSocket(tcp::socket& socket) {
  error_code ignored;
  socket.shutdown(tcp::socket::shutdown_both, ignored);
  socket.close(ignored);
}

class PlainTransport final : public HttpTransport {
 public:
  explicit PlainTransport(tcp::socket socket) : socket_(std::move(socket)) {
    error_code ignored;
    socket_.non_blocking(true, ignored);
  }

  asio::awaitable<bool> Handshake() override { co_return true; }

  asio::awaitable<std::size_t> ReadSome(std::string* out, std::size_t max) override {
    // Shared by all connections of the thread: nothing suspends between the read and the append.
    static thread_local std::array<char, 64 << 10> buffer;
    while (true) {
      error_code ec;
      co_await socket_.async_wait(tcp::socket::wait_read,
                                  asio::redirect_error(asio::use_awaitable, ec));
      if (ec) co_return 0;
      const std::size_t n =
          socket_.read_some(asio::buffer(buffer.data(), std::min(max, buffer.size())), ec);
      if (ec == asio::error::would_block || ec == asio::error::interrupted) continue;
      if (ec) co_return 0;
      out->append(buffer.data(), n);
      co_return n;
    }
  }

  asio::awaitable<bool> Write(std::string_view bytes) override {
    // Mostly the kernel takes a chunk at once; only a lagging reader costs a trip to the reactor.
    while (!bytes.empty()) {
      error_code ec;
      const std::size_t n = socket_.write_some(asio::buffer(bytes.data(), bytes.size()), ec);
      bytes.remove_prefix(n);
      if (ec == asio::error::would_block) {
        co_await socket_.async_wait(tcp::socket::wait_write,
                                    asio::redirect_error(asio::use_awaitable, ec));
      } else if (ec == asio::error::interrupted) {
        continue;
      }
      if (ec) co_return false;
    }
    co_return true;
  }

  asio::awaitable<void> FinishSending() override {
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    co_return;
  }

  void Close() override { CloseSocket(socket_); }

 private:
  tcp::socket socket_;
};

class TlsTransport final : public HttpTransport {
 public:
  TlsTransport(tcp::socket socket, asio::ssl::context& context)
      : stream_(std::move(socket), context) {}

  asio::awaitable<bool> Handshake() override {
    error_code ec;
    co_await stream_.async_handshake(asio::ssl::stream_base::server,
                                     asio::redirect_error(asio::use_awaitable, ec));
    co_return !ec;
  }

  asio::awaitable<std::size_t> ReadSome(std::string* out, std::size_t max) override {
    error_code ec;
    const std::size_t n = co_await stream_.async_read_some(
        asio::buffer(buffer_.data(), std::min(max, buffer_.size())),
        asio::redirect_error(asio::use_awaitable, ec));
    if (ec) co_return 0;
    out->append(buffer_.data(), n);
    co_return n;
  }

  asio::awaitable<bool> Write(std::string_view bytes) override {
    error_code ec;
    co_await asio::async_write(stream_, asio::buffer(bytes.data(), bytes.size()),
                               asio::redirect_error(asio::use_awaitable, ec));
    co_return !ec;
  }

  asio::awaitable<void> FinishSending() override {
    // Sends close_notify without waiting for the peer's: a quiet shutdown of our side, then FIN.
    error_code ignored;
    SSL_set_shutdown(stream_.native_handle(), SSL_RECEIVED_SHUTDOWN);
    co_await stream_.async_shutdown(asio::redirect_error(asio::use_awaitable, ignored));
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_send, ignored);
  }

  void Close() override { CloseSocket(stream_.next_layer()); }

 private:
  asio::ssl::stream<tcp::socket> stream_;
  std::array<char, 16 << 10> buffer_;  // a TLS record
};

class TlsContextImpl final : public TlsContext {
 public:
  TlsContextImpl() : context_(asio::ssl::context::tls_server) {}

  absl::Status Load(const std::string& cert_path, const std::string& key_path) {
    SSL_CTX_set_min_proto_version(context_.native_handle(), TLS1_2_VERSION);
    SSL_CTX_set_options(context_.native_handle(),
                        SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(context_.native_handle(), SSL_MODE_RELEASE_BUFFERS);
    error_code ec;
    context_.use_certificate_chain_file(cert_path, ec);
    if (ec) {
      return absl::InvalidArgumentError(StrCat("the TLS certificate chain cannot be loaded (",
                                               ec.message(),
                                               "); give a PEM file that the server may read"));
    }
    context_.use_private_key_file(key_path, asio::ssl::context::pem, ec);
    if (ec) {
      return absl::InvalidArgumentError(
          StrCat("the TLS private key cannot be loaded (", ec.message(),
                 "); give the PEM key that belongs to the certificate, without a passphrase"));
    }
    return absl::OkStatus();
  }

  std::unique_ptr<HttpTransport> Wrap(tcp::socket socket) override {
    return std::make_unique<TlsTransport>(std::move(socket), context_);
  }

 private:
  asio::ssl::context context_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Load(const std::string& cert_path,
                                                             const std::string& key_path) {
  auto context = std::make_unique<TlsContextImpl>();
  RETURN_IF_ERROR(context->Load(cert_path, key_path));
  return context;
}

std::unique_ptr<HttpTransport> MakePlainTransport(tcp::socket socket) {
  return std::make_unique<PlainTransport>(std::move(socket));
}

}  // namespace longstride::frontend
