// Text from files, made fit for error messages.
#pragma once

#include <string>
#include <string_view>

namespace lola {

bool is_utf8(std::string_view text);

// Valid UTF-8 whatever the input: control characters and stray bytes become \xNN.
std::string escaped(std::string_view text);

// For names in messages: escaped, cut to a readable length, in single quotes.
std::string quote(std::string_view text);

}  // namespace lola
