// Tool calls written as Python: [f(a=1, b='x'), g()]. Internal to model/text.
#pragma once

#include <string>
#include <string_view>

namespace longstride::model {

struct PythonicCall {
  enum Kind {
    kMore,  // a valid start: more text is needed
    kCall,  // a whole call
    kBad,
  } kind = kBad;
  std::string name, arguments_json;
  size_t size = 0;  // bytes of the call
};

// Reads one call, name(key=literal, ...), at the start of `text`. Literals are Python's numbers,
// strings, True, False, None, lists, tuples and dicts, or JSON's; nesting is bounded.
PythonicCall ReadPythonicCall(std::string_view text);

}  // namespace longstride::model
