// Appends JSON to a string, without a tree in between: this runs for every streamed token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longstride::frontend {

// Appends `text` as a JSON string with quotes. Bytes that are not UTF-8 become U+FFFD.
void AppendJsonString(std::string_view text, std::string* out);

// Puts the commas. Calls must form one valid document; nothing is checked.
class JsonWriter {
 public:
  explicit JsonWriter(std::string* out) : out_(out) {}

  void BeginObject() { Open('{'); }
  void EndObject() { Close('}'); }
  void BeginArray() { Open('['); }
  void EndArray() { Close(']'); }
  void Key(std::string_view key) {
    Comma();
    AppendJsonString(key, out_);
    out_->push_back(':');
    comma_ = false;
  }
  void String(std::string_view value) {
    Comma();
    AppendJsonString(value, out_);
  }
  void Int(int64_t value);
  // NaN and infinities, which JSON lacks, are written as null.
  void Double(double value);
  void Float(float value);  // the shortest text that reads back as the same float
  void Bool(bool value) {
    Comma();
    *out_ += value ? "true" : "false";
  }
  void Null() {
    Comma();
    *out_ += "null";
  }
  // A complete JSON value.
  void Raw(std::string_view json) {
    Comma();
    *out_ += json;
  }

  void Field(std::string_view key, std::string_view value) {
    Key(key);
    String(value);
  }
  void Field(std::string_view key, const char* value) { Field(key, std::string_view(value)); }
  void Field(std::string_view key, const std::string& value) {
    Field(key, std::string_view(value));
  }
  void Field(std::string_view key, int64_t value) {
    Key(key);
    Int(value);
  }
  void Field(std::string_view key, int32_t value) { Field(key, int64_t{value}); }
  void Field(std::string_view key, double value) {
    Key(key);
    Double(value);
  }
  void Field(std::string_view key, bool value) {
    Key(key);
    Bool(value);
  }

 private:
  void Comma() {
    if (comma_) out_->push_back(',');
    comma_ = true;
  }
  void Open(char c) {
    Comma();
    out_->push_back(c);
    comma_ = false;
  }
  void Close(char c) {
    out_->push_back(c);
    comma_ = true;
  }

  std::string* out_;
  bool comma_ = false;
};

}  // namespace longstride::frontend
